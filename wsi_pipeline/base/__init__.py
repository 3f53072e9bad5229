"""What every package stands on: errors, geometry, options, files."""
