"""What this machine can do with qvl, and whether what was asked for will work. Looks, and changes nothing."""
