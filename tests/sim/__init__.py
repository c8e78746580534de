"""The simulator: the real store in a made-up world. See world.py."""
