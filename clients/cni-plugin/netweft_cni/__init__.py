"""netweft's CNI plugin: `plugin.py` is copied as it is to where runtimes look for plugins, by `netweft cni install`."""
