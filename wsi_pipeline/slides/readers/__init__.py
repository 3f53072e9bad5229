"""How pixels come off the disk. Only this folder knows file formats."""
