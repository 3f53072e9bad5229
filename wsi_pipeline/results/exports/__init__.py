"""A finished map as files of other tools."""
