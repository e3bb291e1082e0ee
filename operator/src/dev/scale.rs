//! More or fewer nodes while mail flows.
//!
//! The nodes take up the list of nodes from their configuration files. New nodes are simply listed and started; nodes
//! that are to go are marked as leaving, and are stopped once nothing is left on them.

use super::{
    DevError, Service, fleet::Fleet, layout, prepare, resources::Resources, state::Cluster, the_cluster,
};
use crate::{
    admin::AdminClient,
    shape::{Shape, Stage},
};

impl Service {
    /// The number of nodes that is asked for: on the command line, else by the MailCluster, else as it is.
    pub(super) fn wanted_nodes(&self, resources: &Resources) -> u64 {
        let spec = the_cluster(resources).ok().flatten().map(|cluster| u64::from(cluster.spec.nodes));
        self.options.nodes.or(spec).unwrap_or(self.cluster.shape.staying)
    }

    /// Takes the next step towards the number of nodes that is asked for. Answers whether there is nothing left to do.
    pub(super) async fn scale(&mut self, wanted: u64, resources: &Resources, fleet: &mut Fleet) -> bool {
        let (settled, problem) = match self.step(wanted, resources, fleet).await {
            Ok(settled) => (settled, None),
            Err(error) => (false, Some(format!("the nodes cannot be changed: {error}"))),
        };
        // Told once for as long as it lasts.
        if let Some(problem) = problem.as_ref().filter(|problem| self.scale_problem.as_ref() != Some(problem))
        {
            eprintln!("{problem}");
        }
        self.scale_problem = problem;
        settled
    }

    async fn step(
        &mut self,
        wanted: u64,
        resources: &Resources,
        fleet: &mut Fleet,
    ) -> Result<bool, DevError> {
        let shape = self.cluster.shape;
        if wanted == shape.staying && !self.scaling {
            return Ok(true);
        }
        check_nodes(wanted)?;
        let told = self.applier.client().cluster_status().await?;
        let next = shape.next(wanted, Some(&told));
        if next == shape {
            let settled = shape.stage(&told) == Stage::Settled;
            if settled {
                self.scaling = false;
                eprintln!("{wanted} nodes, and every replica is where it should be");
            }
            return Ok(settled);
        }
        self.change(next, shape.running, resources, fleet)?;
        if next.staying != shape.staying {
            eprintln!("changing from {} to {wanted} nodes", shape.staying);
        }
        self.scaling = true;
        if next.running < shape.running {
            fleet.stop(|node| node >= next.running).await;
            (next.running..shape.running).try_for_each(|node| self.state.remove_node(node))?;
        }
        Ok(false)
    }

    /// Writes all configurations for the changed cluster, and starts nodes from number `new` up.
    fn change(
        &mut self,
        shape: Shape,
        new: u64,
        resources: &Resources,
        fleet: &mut Fleet,
    ) -> Result<(), DevError> {
        let mut next = Cluster { shape, ..self.cluster.clone() };
        let places = layout::lay_out(shape.running, self.options.base_port, new)?;
        next.admin = places.iter().map(|place| place.endpoints().admin).collect();
        let spec = the_cluster(resources)?;
        let certificates =
            self.state.certificates(&super::public_names(spec, &places), jiff::Timestamp::now())?;
        // Kept first: should the run end in between, the next one has a generation that no node has seen more of.
        self.state.save_cluster(&next)?;
        let nodes = prepare(&self.options, &self.state, &next, &places, spec, resources, &self.program)?;
        let client = AdminClient::new(&next.admin, &certificates.authority.cert, &certificates.operator)?;
        self.applier.set_client(client);
        self.cluster = next;
        nodes.into_iter().filter(|node| node.place.node >= new).for_each(|node| fleet.start(node));
        Ok(())
    }
}

/// Why a number of nodes cannot be had.
pub(super) fn check_nodes(nodes: u64) -> Result<(), DevError> {
    match nodes {
        0 => Err(DevError::Usage("at least one node is needed".to_owned())),
        n if n > layout::MAX_NODES => {
            Err(DevError::Usage(format!("at most {} nodes run on one machine", layout::MAX_NODES)))
        }
        _ => Ok(()),
    }
}
