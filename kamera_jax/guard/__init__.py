"""Whether reuse is safe: staleness, calibration, policies and plans without a forward, fidelity with one."""
