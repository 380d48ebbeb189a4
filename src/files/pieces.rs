//! Pieces of output that one thread makes and another one writes.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use crate::{Error, Result};

/// What takes pieces: files that are open, and how far they are.
pub(crate) trait Sink: Send + 'static {
    /// Writes the next piece.
    fn take(&mut self, piece: &[u8]) -> Result<()>;
}

/// Hands pieces to a thread that writes them while the next ones are made. Where no thread can be
/// had, they are written at once.
#[derive(Debug)]
pub(crate) enum Pieces<S> {
    /// The other end of the pieces, and what becomes of the sink.
    Thread(SyncSender<Vec<u8>>, JoinHandle<Result<S>>),
    Here(S),
    Over,
}

impl<S: Sink> Pieces<S> {
    /// Begins; `waiting` pieces may wait to be written.
    pub(crate) fn to(sink: S, name: &str, waiting: usize) -> Self {
        // The sink goes to the thread once there is one: a thread that cannot be had keeps nothing.
        let (give, given) = sync_channel::<S>(1);
        let (sender, pieces) = sync_channel::<Vec<u8>>(waiting);
        let work = move || {
            let mut sink = given.recv().map_err(|_| stopped())?;
            pieces.iter().try_for_each(|piece| sink.take(&piece))?;
            Ok(sink)
        };
        match std::thread::Builder::new().name(name.to_owned()).spawn(work) {
            Ok(worker) => match give.send(sink) {
                Ok(()) => Self::Thread(sender, worker),
                Err(error) => Self::Here(error.0),
            },
            Err(_) => Self::Here(sink),
        }
    }

    /// Hands over a piece.
    ///
    /// # Errors
    /// Those of the sink, for this piece or for one before it.
    pub(crate) fn send(&mut self, piece: Vec<u8>) -> Result<()> {
        let sent = match self {
            Self::Thread(sender, _) => sender.send(piece).is_ok(),
            Self::Here(sink) => return sink.take(&piece),
            Self::Over => false,
        };
        match sent.then_some(()) {
            Some(()) => Ok(()),
            None => self.finish().and_then(|_| Err(stopped())),
        }
    }

    /// Waits until every piece is written, and gives the sink back.
    ///
    /// # Errors
    /// Those of the sink.
    pub(crate) fn finish(&mut self) -> Result<S> {
        match std::mem::replace(self, Self::Over) {
            Self::Thread(sender, worker) => {
                drop(sender);
                worker.join().unwrap_or_else(|_| Err(stopped()))
            }
            Self::Here(sink) => Ok(sink),
            Self::Over => Err(stopped()),
        }
    }
}

fn stopped() -> Error {
    Error::General("the thread that writes the file has stopped".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes everything but empty pieces.
    struct Joined(Vec<u8>);

    impl Sink for Joined {
        fn take(&mut self, piece: &[u8]) -> Result<()> {
            if piece.is_empty() {
                return Err(Error::General("an empty piece".to_owned()));
            }
            self.0.extend_from_slice(piece);
            Ok(())
        }
    }

    fn both() -> [Pieces<Joined>; 2] {
        [Pieces::to(Joined(Vec::new()), "test", 2), Pieces::Here(Joined(Vec::new()))]
    }

    #[test]
    fn pieces_arrive_in_order_with_a_thread_and_without() {
        let expected: Vec<u8> = (0..200_u8).flat_map(|number| [number; 3]).collect();
        for mut pieces in both() {
            (0..200_u8).for_each(|number| pieces.send(vec![number; 3]).unwrap());
            assert!(pieces.finish().unwrap().0 == expected);
            assert!(pieces.send(vec![1]).is_err() && pieces.finish().is_err());
        }
    }

    #[test]
    fn what_fails_is_told_at_the_latest_in_the_end() {
        for mut pieces in both() {
            let mut errors = vec![pieces.send(Vec::new()), pieces.send(vec![1])];
            errors.push(pieces.finish().map(drop));
            let first = errors.into_iter().find_map(Result::err).unwrap();
            // Without a thread the sink itself has said no.
            assert_eq!(first.to_string(), "an empty piece");
        }
    }
}
