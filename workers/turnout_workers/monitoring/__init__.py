"""What operators see: metrics, Flower's tab of providers, log lines, traces."""
