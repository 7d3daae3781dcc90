//! Iterators that run ahead of who uses them, in threads of their own.

use std::sync::mpsc::{self, sync_channel};
use std::thread::{Builder, Scope};

use crate::{Doing, Result};

/// The same items, made in a thread of their own, up to `depth` of them before they are asked for. The thread ends with the items,
/// or when nobody takes them any more.
///
/// # Errors
/// `Failed` if no thread can be started.
pub fn ahead<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    depth: usize,
    mut items: impl Iterator<Item = T> + Send + 'scope,
) -> Result<mpsc::IntoIter<T>> {
    let (sender, receiver) = sync_channel(depth);
    Builder::new()
        .spawn_scoped(scope, move || items.try_for_each(|item| sender.send(item)))
        .doing(|| "start a thread")?;
    Ok(receiver.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_in_order_through_any_number_of_threads() {
        let all: Vec<u32> = std::thread::scope(|scope| {
            let doubled = ahead(scope, 1, (0..1000).map(|n| n * 2)).unwrap();
            ahead(scope, 2, doubled.map(|n| n + 1)).unwrap().collect()
        });
        assert_eq!(all, (0..1000).map(|n| n * 2 + 1).collect::<Vec<_>>());
    }

    #[test]
    fn an_endless_iterator_ends_when_nobody_takes_its_items_any_more() {
        let first = std::thread::scope(|scope| {
            let endless = ahead(scope, 1, 0..).unwrap();
            ahead(scope, 1, endless).unwrap().nth(2)
        });
        assert_eq!(first, Some(2));
    }
}
