"""The settings, section by section; `more.config.schema` puts them together."""
