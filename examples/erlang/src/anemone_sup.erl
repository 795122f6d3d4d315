%% Keeps a model running: started anew when it ends, given up after five ends within a minute.
-module(anemone_sup).
-behaviour(supervisor).
-export([start_link/1]).
-export([init/1]).

start_link(Options) -> supervisor:start_link({local, ?MODULE}, ?MODULE, Options).

init(Options) ->
    Model = #{id => model, start => {anemone_model, start_link, [Options]}, restart => permanent, shutdown => 5000},
    {ok, {#{strategy => one_for_one, intensity => 5, period => 60}, [Model]}}.
