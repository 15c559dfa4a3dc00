"""A trained model: saved in shards, opened without reading it whole, asked for predictions and recommendations."""
