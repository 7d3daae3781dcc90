//! The names of images, put together again from the containers that were made of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::engine::image::with_tag;
use crate::{Result, sys};

/// No description of a container is longer.
const LIMIT_BYTES: u64 = 4 * 1024 * 1024;

/// Of a container's `config.v2.json`, as dockerd and balenaEngine write it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    /// The id of its image.
    image: String,
    config: Named,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    /// Its image as it was asked for: `NAME`, `NAME:TAG`, `NAME@sha256:…`, or an id.
    image: String,
}

/// The content of a `repositories.json` for the images that containers in `data` have and that `images` (the directory of
/// the file) holds, and how many names it has.
pub(super) fn of_containers(data: &Path, images: &Path) -> Result<(Value, usize)> {
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for container in sys::file::list(&data.join("containers"))? {
        let text = sys::file::read(&container.join("config.v2.json"), LIMIT_BYTES);
        // A container of which nothing can be told tells nothing of its image either.
        let Some(found) = text.ok().and_then(|t| serde_json::from_slice::<Described>(&t).ok()) else {
            continue;
        };
        let hex = found.image.strip_prefix("sha256:").unwrap_or_default();
        let is_there = !hex.is_empty() && images.join("imagedb/content/sha256").join(hex).is_file();
        if let Some((name, full)) = split(&found.config.image)
            && is_there
        {
            all.entry(name).or_default().insert(full, found.image);
        }
    }
    let count = all.values().map(BTreeMap::len).sum();
    Ok((json!({ "Repositories": all }), count))
}

/// The name without tag and digest, and with what it has of them. `None` for an id.
fn split(image: &str) -> Option<(String, String)> {
    if let Some((name, _)) = image.split_once('@') {
        // A tag beside a digest is not kept by the engine either.
        let bare = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(bare, _)| bare);
        return Some((bare.to_owned(), image.replacen(name, bare, 1)));
    }
    let is_id =
        image.starts_with("sha256:") || (image.len() >= 12 && image.bytes().all(|b| b.is_ascii_hexdigit()));
    if image.is_empty() || is_id {
        return None;
    }
    let full = with_tag(image);
    let bare = full.rsplit_once(':')?.0.to_owned();
    Some((bare, full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_engine_keeps_them() {
        for (image, expected) in [
            ("lab/supervisor:1.0.0", Some(("lab/supervisor", "lab/supervisor:1.0.0"))),
            ("alpine", Some(("alpine", "alpine:latest"))),
            ("10.0.0.1:5000/a/b", Some(("10.0.0.1:5000/a/b", "10.0.0.1:5000/a/b:latest"))),
            ("r.io:5000/v2/a@sha256:01", Some(("r.io:5000/v2/a", "r.io:5000/v2/a@sha256:01"))),
            ("a:1@sha256:01", Some(("a", "a@sha256:01"))),
            ("sha256:0123", None),
            ("0123456789ab", None),
            ("", None),
        ] {
            let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(split(image), expected, "{image}");
        }
    }
}
