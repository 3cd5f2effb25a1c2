"""UNet and VAE decoder compiled ahead of time, beside the eager model that serves meanwhile.

A process of its own exports a component, compiles it with inductor and leaves a package on disk; it runs at the lowest
priority. The worker loads the package between two calls and goes on with the faster of the two. A package
serves every batch size of one latent shape. It holds machine code and weights and no pickle.
"""
