"""Native stages of our trunks; :func:`cnv2_plugin.deploy.lower` puts them into a model."""
