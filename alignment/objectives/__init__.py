"""The mathematics: pure functions of tensors. No config objects, no input or output."""
