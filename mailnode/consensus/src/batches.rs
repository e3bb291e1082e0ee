//! What is ready at the same time travels together: the messages of a queue, gathered into batches.
//!
//! A message costs the transport much the same whatever its size: a frame, a TLS record, calls of the system on both
//! sides, and tasks that are woken. With many groups most are small. So the stream gives way once before it hands
//! out a batch: whatever is about to run adds to it. On a node with nothing else to do that takes no time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use quorumail_proto::peer::{LaneFrame, LaneReply, forward_reply, lane_frame, lane_reply};
use tokio::sync::mpsc;

/// A batch that has come to so many bytes takes no further message, so that it is not held in memory for the sake of
/// one that is kept. A larger message goes as the last of its batch.
const BATCH_BYTES: usize = 64 << 10;
/// Messages in a batch.
const BATCH_MESSAGES: usize = 256;

/// How many bytes a message takes, roughly.
pub(crate) trait Weight {
    fn weight(&self) -> usize;
}

impl Weight for LaneFrame {
    fn weight(&self) -> usize {
        match &self.request {
            Some(lane_frame::Request::Append(append) | lane_frame::Request::Heartbeat(append)) => {
                append.head.len() + append.commands.iter().map(bytes::Bytes::len).sum::<usize>()
            }
            Some(lane_frame::Request::Forward(forward)) => forward.payload.len(),
            Some(lane_frame::Request::End(_)) | None => 0,
        }
    }
}

impl Weight for LaneReply {
    fn weight(&self) -> usize {
        match &self.answer {
            Some(lane_reply::Answer::Append(answer)) => answer.payload.len(),
            Some(lane_reply::Answer::Forward(reply)) => match &reply.outcome {
                Some(forward_reply::Outcome::Answer(answer)) => answer.len(),
                _ => 0,
            },
            Some(lane_reply::Answer::Closed(_)) | None => 0,
        }
    }
}

/// The messages of a queue in batches, none of them empty; ends with the queue.
pub(crate) struct Batches<T> {
    queue: mpsc::Receiver<T>,
    batch: Vec<T>,
    bytes: usize,
    gave_way: bool,
}

impl<T: Weight> Batches<T> {
    pub(crate) fn new(queue: mpsc::Receiver<T>) -> Batches<T> {
        Batches { queue, batch: Vec::new(), bytes: 0, gave_way: false }
    }

    fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES || self.batch.len() >= BATCH_MESSAGES
    }
}

impl<T: Weight + Unpin> Stream for Batches<T> {
    type Item = Vec<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Vec<T>>> {
        let mut ended = false;
        while !self.is_full() && !ended {
            match self.queue.poll_recv(context) {
                Poll::Ready(Some(message)) => {
                    self.bytes += message.weight();
                    self.batch.push(message);
                }
                Poll::Ready(None) => ended = true,
                Poll::Pending if self.batch.is_empty() => return Poll::Pending,
                Poll::Pending if !self.gave_way => {
                    self.gave_way = true;
                    give_way(context);
                    return Poll::Pending;
                }
                Poll::Pending => break,
            }
        }
        (self.bytes, self.gave_way) = (0, false);
        let batch = std::mem::take(&mut self.batch);
        Poll::Ready(if batch.is_empty() { None } else { Some(batch) })
    }
}

/// Has the task polled again once this thread has run whatever else is ready. A task that only woke itself would be the
/// next to run, before those that other threads have woken.
fn give_way(context: &mut Context<'_>) {
    let later = std::pin::pin!(tokio::task::yield_now());
    let Poll::Pending = later.poll(context) else { unreachable!("it is ready only when it is polled again") };
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    impl Weight for usize {
        fn weight(&self) -> usize {
            *self
        }
    }

    #[tokio::test]
    async fn what_is_ready_at_the_same_time_goes_together_and_in_order() {
        let (sender, queue) = mpsc::channel(8);
        let mut batches = Batches::new(queue);
        for message in 1..=3 {
            sender.send(message).await.unwrap();
        }
        assert_eq!(batches.next().await, Some(vec![1, 2, 3]));
        // Queued by a task that runs only once the stream has given way.
        sender.send(4).await.unwrap();
        let other = sender.clone();
        let later = tokio::spawn(async move { other.send(5).await });
        assert_eq!(batches.next().await, Some(vec![4, 5]));
        later.await.unwrap().unwrap();
        sender.send(6).await.unwrap();
        drop(sender);
        assert_eq!(batches.next().await, Some(vec![6]));
        assert_eq!(batches.next().await, None);
    }

    #[tokio::test]
    async fn batches_are_bounded_in_bytes_and_number() {
        let (sender, queue) = mpsc::channel(2 * BATCH_MESSAGES);
        let mut batches = Batches::new(queue);
        for message in [BATCH_BYTES - 1, 10 * BATCH_BYTES, 7, BATCH_BYTES] {
            sender.send(message).await.unwrap();
        }
        assert_eq!(batches.next().await, Some(vec![BATCH_BYTES - 1, 10 * BATCH_BYTES]));
        assert_eq!(batches.next().await, Some(vec![7, BATCH_BYTES]));
        for _ in 0..=BATCH_MESSAGES {
            sender.send(0).await.unwrap();
        }
        drop(sender);
        // The runtime may end a batch sooner: a task that has taken much of a queue gives way as well.
        let sizes: Vec<usize> = batches.map(|batch| batch.len()).collect().await;
        assert_eq!(sizes.iter().sum::<usize>(), BATCH_MESSAGES + 1);
        assert!(sizes.iter().all(|size| *size <= BATCH_MESSAGES), "{sizes:?}");
    }
}
