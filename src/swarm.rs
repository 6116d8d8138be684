//! What a Petals swarm is here: who serves which blocks, how to route through them, which blocks to serve.
