"""Commands, one small file each: parse, load the config, call one function, print, set the exit code."""
