//! Two engines, the key layout, and the state of each replica in step.
