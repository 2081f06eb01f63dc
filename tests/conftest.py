"""What holds for every test: none depends on how fast the machine is, or on what was downloaded to it."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# Weights that other tools have put into torch's cache would be found and used.
os.environ["TORCH_HOME"] = os.path.join(os.devnull, "torch")
