"""The gRPC service: wire ↔ values, identity, limits. What the verbs mean is the store's business."""
