"""What a trained model says of every stamp, and how that compares with labels."""
