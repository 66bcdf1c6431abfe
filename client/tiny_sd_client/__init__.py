"""Client side of Tiny-SD on Triton: the documented parameters."""
