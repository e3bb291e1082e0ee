//! The nodes that run: each can be started and stopped by itself, and all are stopped at the end.

use std::{collections::BTreeMap, io};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::nodes::Node;

struct Running {
    node: Node,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// All nodes that run.
pub struct Fleet {
    running: BTreeMap<u64, Running>,
    failed: mpsc::Sender<io::Error>,
    ready: watch::Receiver<bool>,
}

impl Fleet {
    /// No node yet. `failed` is told when one cannot be run; `ready` says that the cluster was ready once.
    pub fn new(failed: mpsc::Sender<io::Error>, ready: watch::Receiver<bool>) -> Self {
        Self { running: BTreeMap::new(), failed, ready }
    }

    /// Starts a node, unless it runs.
    pub fn start(&mut self, node: Node) {
        let (failed, ready) = (self.failed.clone(), self.ready.clone());
        self.running.entry(node.place.node).or_insert_with(|| {
            let (stop, stopping) = watch::channel(false);
            let run = node.clone().run(stopping, ready);
            let task = tokio::spawn(async move {
                if let Err(error) = run.await {
                    // One failure is told; it ends everything.
                    drop(failed.try_send(error));
                }
            });
            Running { node, stop, task }
        });
    }

    /// Stops nodes in good order, and waits for their end.
    pub async fn stop(&mut self, which: impl Fn(u64) -> bool) {
        let ids: Vec<u64> = self.running.keys().copied().filter(|node| which(*node)).collect();
        let stopping: Vec<Running> = ids.iter().filter_map(|node| self.running.remove(node)).collect();
        for running in &stopping {
            // A node that has ended already has nobody to tell.
            let _ = running.stop.send(true);
        }
        for running in stopping {
            if let Err(error) = running.task.await {
                eprintln!("node {} did not end in good order: {error}", running.node.place.node);
            }
        }
    }

    /// The nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.running.values().map(|running| &running.node)
    }
}
