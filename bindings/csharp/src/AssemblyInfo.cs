using System.Runtime.CompilerServices;

[assembly: InternalsVisibleTo("Inflight.Tests")]
