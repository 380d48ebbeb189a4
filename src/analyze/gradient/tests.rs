//! Gradients against differences of the loss, which another path through the model computes.
