"""What operators see from outside: metrics, Flower's tab of providers, log lines."""
