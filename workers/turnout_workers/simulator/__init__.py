"""A fleet of simulated providers behind one HTTP server, in three wire formats. No model is run.

It replaces real providers where there is no key. For tests it is the oracle: it counts every job's calls and what they
cost, independently of what the workers believe.
"""

from turnout_workers.simulator.scenario import Fault, Scenario, SimulatedModel, SimulatedProvider, load

__all__ = ["Fault", "Scenario", "SimulatedModel", "SimulatedProvider", "load"]
