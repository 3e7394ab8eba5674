"""A fleet of simulated providers behind one HTTP server, true to three wire formats. No model is run.

It stands in for real providers where there is no key, and for tests it is the oracle: it counts what every
job was called for and billed, independently of what the workers believe.
"""

from turnout_workers.simulator.scenario import Fault, Scenario, SimulatedModel, SimulatedProvider, load

__all__ = ["Fault", "Scenario", "SimulatedModel", "SimulatedProvider", "load"]
