//! What the operator asks of a running gateway: by signals, and by POST to the administration.
//!
//! The administration's own thread changes what is only a flag; the rest goes to the control thread
//! as a signal does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use ringgate::admin::Command;

use crate::log::LogLevel;

/// What the control thread is to do.
pub(crate) enum Asked {
    /// Read everything again.
    Reload,
    /// Close the listeners; first only stop being ready, if it is `graceful`.
    Close {
        graceful: bool,
    },
    End,
}

/// Where orders come in.
pub(crate) struct Orders {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    posted: UnboundedReceiver<Asked>,
    post: UnboundedSender<Asked>,
    fails_health_check: Arc<AtomicBool>,
}

impl Orders {
    pub(crate) fn new() -> io::Result<Self> {
        let (post, posted) = mpsc::unbounded_channel();
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            posted,
            post,
            fails_health_check: Arc::default(),
        })
    }

    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.hangup.recv() => Asked::Reload,
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            // Never closed: this has a sender, too.
            Some(asked) = self.posted.recv() => asked,
        }
    }

    /// Whether the operator wants the gateway to be not ready.
    pub(crate) fn fails_health_check(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.fails_health_check)
    }

    /// Takes the commands of the administration, on its thread.
    pub(crate) fn commands(&self, log: LogLevel) -> impl Fn(Command) + Send + use<> {
        let (post, fails) = (self.post.clone(), self.fails_health_check());
        move |command| {
            let asked = match command {
                Command::HealthCheck { fail } => return fails.store(fail, Relaxed),
                // Fails when there is no log any more: at the end of the process.
                Command::Log(level) => return log.reload(level).unwrap_or_default(),
                Command::DrainListeners { graceful } => Asked::Close { graceful },
                Command::Quit => Asked::End,
            };
            // Fails when the process is ending already.
            let _: Result<(), _> = post.send(asked);
        }
    }
}
