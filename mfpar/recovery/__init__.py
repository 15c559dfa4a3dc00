"""What a run goes on from after bad luck: checkpoints on disk."""
