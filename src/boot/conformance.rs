//! The laws that every boot chooser keeps (laws 1 to 3 of [`super`]; 4 is `sim`'s, 5 and 6 are beside each codec).

use super::BootChooser;
use crate::block::Verified;
use crate::model::{BootPlan, Slot};

/// Runs the laws against a chooser whose plan is settled on slot A.
pub fn check(chooser: &mut impl BootChooser) {
    assert_eq!(chooser.plan().unwrap(), BootPlan::settled(Slot::A), "starts settled on A");
    for primary in [Slot::A, Slot::B, Slot::A] {
        for tries in 1..=9 {
            for _twice in 0..2 {
                chooser.arm(&Verified::for_test(!primary), tries).unwrap();
                assert_eq!(chooser.plan().unwrap(), BootPlan::on_trial(!primary, tries));
            }
            for _twice in 0..2 {
                chooser.disarm(primary).unwrap();
                assert_eq!(chooser.plan().unwrap(), BootPlan::settled(primary));
            }
        }
        chooser.arm(&Verified::for_test(!primary), 3).unwrap();
        for _twice in 0..2 {
            chooser.commit(!primary).unwrap();
            assert_eq!(chooser.plan().unwrap(), BootPlan::settled(!primary));
        }
    }
}
