//! [`Graph`]: interns nodes, so that the same operation on the same filesystem is one node.

use std::collections::HashMap;

use cfc_dockerfile::Span;
use cfc_oci::Digest;
use serde::Serialize;

use crate::{Node, NodeId, Op};

#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
    by_key: HashMap<Digest, NodeId>,
}

/// Where a node was written.
pub(crate) struct Origin<'a> {
    pub(crate) stage: &'a str,
    pub(crate) display: &'a str,
    pub(crate) span: Span,
}

/// What a node's key is the digest of.
#[derive(Serialize)]
struct KeyParts<'a> {
    op: &'a Op,
    base: Option<&'a Digest>,
    sources: Vec<&'a Digest>,
}

impl Graph {
    pub(crate) fn add(&mut self, op: Op, base: Option<NodeId>, origin: &Origin<'_>) -> NodeId {
        let key = self.key(&op, base);
        if let Some(existing) = self.by_key.get(&key) {
            return *existing;
        }
        let id = NodeId(self.nodes.len());
        self.by_key.insert(key.clone(), id);
        self.nodes.push(Node {
            op,
            base,
            key,
            stage: origin.stage.to_string(),
            is_fresh: false,
            display: origin.display.to_string(),
            span: origin.span,
        });
        id
    }

    fn key(&self, op: &Op, base: Option<NodeId>) -> Digest {
        let key_of = |id: NodeId| &self.nodes[id.0].key;
        let parts = KeyParts { op, base: base.map(key_of), sources: op.sources().map(key_of).collect() };
        Digest::of(&serde_json::to_vec(&parts).expect("an operation has only string keys"))
    }
}
