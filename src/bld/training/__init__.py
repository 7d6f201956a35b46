"""How the bundled models are made: `bld train`. See docs/training.md."""
