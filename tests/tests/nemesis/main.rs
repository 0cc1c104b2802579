//! Faults on real processes under load, one cluster at a time. Each row ends with all checks of
//! [`strata_tests::nemesis::Nemesis::finish`].

mod clock;
mod disk;
mod kill;
mod partition;
mod pause;
mod planted;
mod random;
mod weather;
