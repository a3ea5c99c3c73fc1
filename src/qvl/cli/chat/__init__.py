"""`qvl chat`: a conversation in the terminal. `talk` is the core, `terminal` and `plain` face the user."""
