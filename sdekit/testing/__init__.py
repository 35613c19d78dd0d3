"""What a project needs to test its own classes: `strategies` for Hypothesis (extra `testing`)."""
