//! Whether this processor can run what RocksDB was compiled to: `scripts/setup.sh` has it compute
//! its checksums with instructions that x86-64 processors have since 2010. Asked by the commands
//! that open engines.

use crate::exit::Failure;

/// Refuses what the compiled code would end on with an illegal instruction.
///
/// # Errors
/// What the processor lacks, and what to do.
pub fn check() -> Result<(), Failure> {
    #[cfg(target_arch = "x86_64")]
    if !(is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq")) {
        return Err(Failure::error(
            "this processor has no SSE4.2 or no PCLMULQDQ, which those since 2010 have; \
             use a newer one, or give the virtual machine a newer model of processor",
        ));
    }
    Ok(())
}
