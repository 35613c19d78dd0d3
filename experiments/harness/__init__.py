"""What the experiments share: a command line made of a frozen config, and sweeps over configs."""
