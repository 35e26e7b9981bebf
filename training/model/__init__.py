"""The ranker: configuration, backbones, enhancers, history kernel, and the artefact it is saved as."""
