"""The shipped profiles, installed as `qvl._profiles` so that a wheel carries them; see `qvl.profile`."""
