"""What the sessions of the process have done and are doing, counted where it happens."""
