"""Which patches of a slide are looked at: tissue, artefacts, grid, and the patches themselves."""
