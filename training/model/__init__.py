"""The ranker: configuration, backbones, enhancers, history kernel, saved artefact, and fast inference."""
