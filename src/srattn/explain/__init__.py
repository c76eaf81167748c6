"""What a trained model looks at, and the page that tells how a run went."""
