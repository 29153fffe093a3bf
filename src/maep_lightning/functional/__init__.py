"""Pure tensor functions: patches, masking and losses. No state, no I/O."""
