"""Protobuf modules of the kvstore.v1 protocol, generated from protos/ at build time."""
