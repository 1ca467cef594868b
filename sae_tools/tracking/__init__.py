"""What a run tells while it trains: metrics, the density history, progress, and wandb when asked."""
