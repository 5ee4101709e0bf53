//! How a runtime is set up, and why it may not come up as wished.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// What a runtime is made with. Only a restart changes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The driver. Default: [`Backend::Auto`].
    pub backend: Backend,
    /// Operations that one system call hands to the kernel; more cost another call. Default 1024:
    /// eight for each of the 128 polls of a turn.
    pub submission_entries: u32,
    /// Completions that fit; more wait in the kernel, at a price. Default 8192: some thousand
    /// connections may each complete a send and several receives in one turn.
    pub completion_entries: u32,
    /// Receive buffers, rounded up to a power of two from 2 to 32768. Default 128: as many slow
    /// readers may each hold one. Those returned last are used first, so a thread that needs few
    /// touches few.
    pub buffers: u16,
    /// The size of one. Default 32 KB: a full TLS record is mostly in one piece, a head and a body
    /// of 16 KB too, and bulk data takes few calls.
    pub buffer_bytes: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            backend: Backend::Auto,
            submission_entries: 1024,
            completion_entries: 8192,
            buffers: 128,
            buffer_bytes: 32 * 1024,
        }
    }
}

impl Config {
    pub(super) fn buffer_count(&self) -> u16 {
        self.buffers.clamp(2, 1 << 15).next_power_of_two()
    }
}

/// Which driver is wished for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// io_uring, or epoll where the kernel denies it.
    #[default]
    Auto,
    /// epoll, which every kernel has.
    Epoll,
    /// io_uring, or an error.
    IoUring,
}

/// Which driver runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Running {
    /// epoll, as wished.
    Epoll,
    /// epoll, because io_uring was denied.
    EpollInstead(Denied),
    /// io_uring.
    IoUring,
}

impl Running {
    /// The driver's name, and what denied io_uring, or nothing: for a metric.
    #[must_use]
    pub fn labels(&self) -> (&'static str, &'static str) {
        match self {
            Self::Epoll => ("epoll", ""),
            Self::EpollInstead(denied) => ("epoll", denied.label()),
            Self::IoUring => ("io_uring", ""),
        }
    }
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoll => f.write_str("epoll"),
            Self::EpollInstead(denied) => write!(f, "epoll, because {denied}"),
            Self::IoUring => f.write_str("io_uring"),
        }
    }
}

/// Why there is no runtime.
#[derive(Debug)]
pub enum StartError {
    /// The kernel denies io_uring, and nothing else is allowed.
    Denied(Denied),
    /// The kernel refused a descriptor that every runtime needs.
    Io(io::Error),
    /// This thread has a runtime already: a bug of the caller.
    Occupied,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denied) => denied.fmt(f),
            Self::Io(error) => write!(f, "the event loop could not be set up: {error}"),
            Self::Occupied => f.write_str("this thread has a runtime already"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How the kernel denied io_uring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    step: Step,
    reason: Reason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    Errno(Errno),
    /// The kernel lacks this operation.
    Opcode(&'static str),
}

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Setup,
    Probe,
    Buffers,
    Restrictions,
    Enter,
}

impl Denied {
    pub(super) fn new(step: Step, error: &io::Error) -> Self {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::INVAL);
        Self { step, reason: Reason::Errno(errno) }
    }

    pub(super) fn without_opcode(name: &'static str) -> Self {
        Self { step: Step::Probe, reason: Reason::Opcode(name) }
    }

    /// The errno's name, or the missing operation: short and stable, for a metric.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self.reason {
            Reason::Errno(Errno::PERM) => "EPERM",
            Reason::Errno(Errno::ACCESS) => "EACCES",
            Reason::Errno(Errno::NOSYS) => "ENOSYS",
            Reason::Errno(Errno::INVAL) => "EINVAL",
            Reason::Errno(Errno::NOMEM) => "ENOMEM",
            Reason::Errno(Errno::MFILE) => "EMFILE",
            Reason::Errno(Errno::NFILE) => "ENFILE",
            Reason::Errno(_) => "other",
            Reason::Opcode(name) => name,
        }
    }

    /// The likely cause, and what to do about it.
    fn cure(self) -> &'static str {
        match self.reason {
            Reason::Errno(Errno::PERM | Errno::ACCESS) => {
                "likely a seccomp profile or the sysctl kernel.io_uring_disabled forbids it: allow \
                 io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp \
                 profile, and set kernel.io_uring_disabled=0"
            }
            Reason::Errno(Errno::NOSYS) => {
                "likely the kernel was built without CONFIG_IO_URING, or a seccomp profile hides \
                 it: use a kernel from 6.1 on, or allow the io_uring system calls"
            }
            Reason::Errno(Errno::INVAL) | Reason::Opcode(_) => {
                "likely the kernel is older than 6.1: use a newer one; or the ring's sizes are out \
                 of range"
            }
            Reason::Errno(Errno::NOMEM) => {
                "likely the limit of locked memory: raise RLIMIT_MEMLOCK (ulimit -l, \
                 LimitMEMLOCK=), or make the rings and buffers smaller"
            }
            Reason::Errno(Errno::MFILE | Errno::NFILE) => {
                "no descriptors are left: raise RLIMIT_NOFILE (ulimit -n, LimitNOFILE=)"
            }
            Reason::Errno(_) => "the cause is not known: choose the epoll backend",
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Setup => "setting up a ring",
            Step::Probe => "probing its operations",
            Step::Buffers => "registering its buffers",
            Step::Restrictions => "restricting it to the operations in use",
            Step::Enter => "entering it",
        };
        write!(f, "io_uring is not available: {step} failed with ")?;
        match self.reason {
            Reason::Errno(errno) => write!(f, "{} ({errno})", self.label())?,
            Reason::Opcode(name) => write!(f, "the operation {name} missing")?,
        }
        write!(f, "; {}", self.cure())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(errno: Errno) -> String {
        Denied::new(Step::Setup, &errno.into()).to_string()
    }

    #[test]
    fn a_denial_says_its_cause_and_its_cure() {
        assert!(text(Errno::PERM).contains("EPERM"));
        assert!(text(Errno::PERM).contains("kernel.io_uring_disabled=0"));
        assert!(text(Errno::NOSYS).contains("CONFIG_IO_URING"));
        assert!(text(Errno::INVAL).contains("6.1"));
        assert!(text(Errno::NOMEM).contains("RLIMIT_MEMLOCK"));
        assert!(text(Errno::MFILE).contains("RLIMIT_NOFILE"));
        assert!(Denied::without_opcode("SEND").to_string().contains("SEND missing"));
    }

    #[test]
    fn buffers_are_rounded_to_what_the_kernel_takes() {
        let count = |buffers| Config { buffers, ..Config::default() }.buffer_count();
        assert_eq!([0, 3, 256, u16::MAX].map(count), [2, 4, 256, 1 << 15]);
    }
}
