"""What a trained model learned: plots and error analysis."""
