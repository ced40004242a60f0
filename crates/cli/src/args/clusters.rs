//! How what left the window is summarised.

use clap::{Args, ValueEnum};
use everstream_runtime::kv_cache::{ClusterBias, ClusterConfig, ClusterForm, ClusterPlace};

/// How what left the window is summarised.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClusterArgs {
    /// Clusters that summarise what left the window [default: 0]
    #[arg(long = "clusters", value_name = "K")]
    pub(crate) n_clusters: Option<usize>,
    /// Where clusters stand
    #[arg(long, value_enum, default_value_t = ClusterPlaceArg::After, requires = "n_clusters")]
    pub(crate) cluster_place: ClusterPlaceArg,
    /// What stands for a cluster
    #[arg(long, value_enum, default_value_t = ClusterFormArg::Centroid, requires = "n_clusters")]
    pub(crate) cluster_form: ClusterFormArg,
    /// How much a cluster weighs
    #[arg(long, value_enum, default_value_t = ClusterBiasArg::Calibrated, requires = "n_clusters")]
    pub(crate) cluster_bias: ClusterBiasArg,
    /// Newest tokens that a cluster is made of, about; 0 for all it ever got
    #[arg(long, value_name = "N", default_value_t = 64, requires = "n_clusters")]
    pub(crate) cluster_members: u64,
    /// Talk with clusters also where they were not measured to help the model
    #[arg(long, requires = "n_clusters")]
    pub(crate) force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClusterPlaceArg {
    /// Behind the sinks
    After,
    /// In place of the sinks
    Sinks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClusterFormArg {
    /// The mean of its keys and values
    Centroid,
    /// The token whose key is nearest to the mean
    Medoid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClusterBiasArg {
    /// As much as one token
    None,
    /// As much as its tokens, if they were all at its place
    LogCount,
    /// So that attention comes nearest to what it would be if nothing had left, by a sample of it
    Calibrated,
}

impl ClusterArgs {
    /// Refuses clusters that were not measured to help this model (`docs/BENCHMARKS.md`): a
    /// conversation is no place to find out.
    ///
    /// # Errors
    ///
    /// That they were not, unless somebody insists.
    pub(crate) fn check(&self, model: &str) -> anyhow::Result<()> {
        const HELPED: [&str; 2] =
            ["Smollm2 135M 8k Lc100K Mix1 Ep2", "Qwen2.5 Coder 0.5B Instruct AWQ"];
        const HURT: [(&str, &str); 2] = [
            ("Gemma 3 270m", "1.0 % worse on one of two books at a budget of 512"),
            ("Qwen2.5 Coder 1.5B Instruct GGUF", "1.2 % worse on one of two books at one of 256"),
        ];
        let Some(config) = self.config().filter(|_| !self.force) else { return Ok(()) };
        if config != ClusterConfig::default() {
            anyhow::bail!(
                "only 64 calibrated centroids behind the sinks were measured to help a model: use \
                 --clusters 64 without other --cluster settings, or --force"
            );
        }
        if let Some((_, how)) = HURT.iter().find(|(name, _)| *name == model) {
            anyhow::bail!(
                "clusters made {model} {how} (docs/BENCHMARKS.md): leave --clusters out, or use --force"
            );
        }
        if !HELPED.contains(&model) {
            anyhow::bail!(
                "clusters were not measured to help {model}: compare them by `everstream perplexity \
                 --clusters {}` and without, leave --clusters out, or use --force",
                config.n_clusters
            );
        }
        Ok(())
    }

    pub(super) fn config(&self) -> Option<ClusterConfig> {
        let n_clusters = self.n_clusters.filter(|&n| n > 0)?;
        Some(ClusterConfig {
            n_clusters,
            place: match self.cluster_place {
                ClusterPlaceArg::After => ClusterPlace::After,
                ClusterPlaceArg::Sinks => ClusterPlace::Sinks,
            },
            form: match self.cluster_form {
                ClusterFormArg::Centroid => ClusterForm::Centroid,
                ClusterFormArg::Medoid => ClusterForm::Medoid,
            },
            bias: match self.cluster_bias {
                ClusterBiasArg::None => ClusterBias::None,
                ClusterBiasArg::LogCount => ClusterBias::LogCount,
                ClusterBiasArg::Calibrated => ClusterBias::Calibrated,
            },
            n_members: if self.cluster_members == 0 { u64::MAX } else { self.cluster_members },
            ..ClusterConfig::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_talks_is_told_what_was_measured() {
        let clusters = ClusterArgs {
            n_clusters: Some(64),
            cluster_place: ClusterPlaceArg::After,
            cluster_form: ClusterFormArg::Centroid,
            cluster_bias: ClusterBiasArg::Calibrated,
            cluster_members: 64,
            force: false,
        };
        let refused = |model| clusters.check(model).err().map(|error| error.to_string());
        assert_eq!(refused("Qwen2.5 Coder 0.5B Instruct AWQ"), None);
        assert!(refused("Gemma 3 270m").is_some_and(|error| error.contains("1.0 % worse")));
        assert!(refused("Llama").is_some_and(|error| error.contains("not measured to help Llama")));
        let forced = ClusterArgs { force: true, ..clusters.clone() };
        assert!(forced.check("Gemma 3 270m").is_ok());
    }
}
